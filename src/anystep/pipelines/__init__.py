"""diffusers pipelines: prompts to images in any number of steps."""
