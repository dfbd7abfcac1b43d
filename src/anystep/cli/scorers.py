"""`anystep train-classifier`, `train-alignment`, `train-scene-detector`: networks that evaluations score with."""

import argparse

from anystep.bounds import Count
from anystep.cli.option_types import output_file, spec, square
from anystep.cli.options import Commands, add_options
from anystep.console import say
from anystep.files import check_output


def add(commands: Commands) -> None:
    classifier = commands.add_parser("train-classifier", help="train a small feature extractor on labelled data")
    classifier.add_argument("data", type=spec, help="classes:FOLDER or idx:FOLDER")
    add_options(classifier, "--size", type=square, default=28, help="of the images in pixels, a square")
    classifier.add_argument("--epochs", type=Count, default=3, help="passes over the data")
    classifier.set_defaults(run=run_classifier)
    alignment = commands.add_parser("train-alignment", help="train the offline caption alignment score")
    alignment.set_defaults(run=run_alignment)
    detector = commands.add_parser("train-scene-detector", help="train the detector that judges scenes")
    detector.add_argument("--steps", type=Count, default=4000, help="steps of training")
    detector.set_defaults(run=run_scene_detector)
    for parser in (classifier, alignment, detector):
        parser.add_argument("--out", type=output_file, required=True, help="a .safetensors file")
        add_options(parser, "--device")


def run_classifier(options: argparse.Namespace) -> None:
    from anystep.device import pick_device
    from anystep.evaluation.extractors.classifier import load_classifier, save_classifier, train_classifier

    check_output(options.out, ".safetensors", load_classifier)
    network, accuracy = train_classifier(options.data, options.size, options.epochs, device=pick_device(options.device))
    save_classifier(network, options.out)
    print(f"wrote {options.out}: right on {accuracy:.1%} of the held-out images")


def run_alignment(options: argparse.Namespace) -> None:
    from anystep.device import pick_device
    from anystep.evaluation.metrics.caption_scores import AlignmentHeads, train_alignment

    check_output(options.out, ".safetensors", AlignmentHeads.load)
    heads = train_alignment(device=pick_device(options.device))
    heads.save(options.out)
    recall = heads.recall
    assert recall is not None
    print(f"wrote {options.out}: of {recall.captions} held-out captions the right one is nearest to")
    print(f"{recall.at_1:.1%} of the images, and among the nearest five to {recall.at_5:.1%}")


def run_scene_detector(options: argparse.Namespace) -> None:
    from anystep.device import pick_device
    from anystep.evaluation.benchmarks.scene_detector import SceneDetector, train_scene_detector

    check_output(options.out, ".safetensors", SceneDetector.load)

    def show(done: int, total: int, loss: float) -> None:
        if done % 100 == 0 or done == total:
            say(f"{done}/{total}  loss {loss:.3f}")

    detector = train_scene_detector(options.steps, on_step=show, device=pick_device(options.device))
    detector.save(options.out)
    print(
        f"wrote {options.out}: `anystep benchmark scenes --detector {options.out}` reports its score on true pictures"
    )
