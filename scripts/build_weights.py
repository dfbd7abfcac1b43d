"""Put a trained run into the package: `python scripts/build_weights.py runs/emoji [--codec runs/codec-refined/codec]`.

The transformer and the codec are stored in float16, half the size of what was trained and read back as float32.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch

from anystep.codecs import AutoencoderCodec, load_codec
from anystep.errors import InputError
from anystep.pipelines.load import find
from anystep.pipelines.transition import TransitionPipeline

OUT = Path(__file__).parent.parent / "src" / "anystep" / "weights" / "builtin"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--codec", type=Path, help="a codec with the same encoder, in place of the run's")
    options = parser.parse_args()
    pipeline = TransitionPipeline.from_pretrained(find(options.run))
    if options.codec is not None:
        codec = load_codec(options.codec)
        if not isinstance(codec, AutoencoderCodec):
            raise InputError(f"{options.codec} is not an autoencoder")
        pipeline.vae = codec.autoencoder
    pipeline.register_to_config(license="Apache-2.0")
    for part in (pipeline.transformer, pipeline.vae):  # `.half()` keeps no layer back, unlike `.to(float16)`
        for tensor in [*part.parameters(), *part.buffers()]:
            tensor.data = tensor.data.to(torch.float16)
    card = OUT / "README.md"
    text = card.read_text("utf-8") if card.exists() else None
    shutil.rmtree(OUT, ignore_errors=True)
    pipeline.save_pretrained(OUT)
    for file in OUT.rglob("*.py"):  # for diffusers without anystep, whose package this is
        file.unlink()
    index = OUT / "model_index.json"
    content = json.loads(index.read_text("utf-8"))
    content |= {"_class_name": "TransitionPipeline"}
    content |= {part: ["anystep", content[part][1]] for part in ("scheduler", "transformer")}
    index.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    for file in OUT.rglob("*.json"):  # where the parts were loaded from concerns nobody
        content = json.loads(file.read_text("utf-8"))
        if content.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
    if text is not None:
        card.write_text(text, "utf-8")
    print(f"{sum(file.stat().st_size for file in OUT.rglob('*') if file.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
