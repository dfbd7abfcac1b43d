"""What is fuzzed: for each area a valid input, and what reads it. All of it is small."""

from areas import folders, options, recipes, scoring, sources

AREAS = {**sources.AREAS, **scoring.AREAS, **recipes.AREAS, **folders.AREAS, **options.AREAS}
