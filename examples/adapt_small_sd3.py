"""A small Stable Diffusion 3 of clothes, trained by flow matching, adapted to any number of steps, and measured.

    python examples/adapt_small_sd3.py base clothes       # the pipeline, as anybody trains one
    python examples/adapt_small_sd3.py adapt clothes      # `anystep train adapt-sd3`
    python examples/adapt_small_sd3.py measure clothes    # `anystep evaluate` of both

Fashion-MNIST is read from where Debian's dataset-fashion-mnist puts it.
"""

import argparse
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from torch import Tensor

from anystep.conditioning.pipeline_text import PipelineTextEncoder
from anystep.data.images import to_tensor
from anystep.data.sources import open_source
from anystep.pipelines.load import load
from anystep.sampling import guided, sample
from anystep.transport import make_transport

CLOTHES = "idx:/usr/share/datasets/fashion-mnist"
SIDE, TRAIN, REAL, TOKENS = 16, 6000, 2000, 1
GUIDANCE = 3.0
STEPS = ("1", "2", "4", "8", "16", "64")


def write_folders(out: Path) -> None:
    """Captioned pictures to train on, and others to compare with."""
    source = open_source(CLOTHES, SIDE)
    for name, numbers in (("train", range(TRAIN)), ("real", range(TRAIN, TRAIN + REAL))):
        folder = out / name
        folder.mkdir(parents=True)
        for number in numbers:
            example = source[number]
            example.image.save(folder / f"{number:05d}.png")
            (folder / f"{number:05d}.txt").write_text(source.class_names[example.label or 0].lower())


def tokenizer() -> transformers.CLIPTokenizer:
    """One token a letter."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab=dict(zip(words, range(54), strict=True)), merges=[], model_max_length=14)


def text_encoder() -> transformers.CLIPTextModelWithProjection:
    """A random one: it tells ten words apart."""
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=32, bos_token_id=52, eos_token_id=53, pad_token_id=53, max_position_embeddings=14,
    )  # fmt: skip
    return transformers.CLIPTextModelWithProjection(config).eval()


def train_autoencoder(images: Tensor, steps: int = 250) -> AutoencoderKL:
    """Four channels of latents for each pixel."""
    autoencoder = AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"], up_block_types=["UpDecoderBlock2D"], block_out_channels=[8],
        latent_channels=4, norm_num_groups=2, layers_per_block=1, use_quant_conv=False, use_post_quant_conv=False,
        mid_block_add_attention=False,
    )  # fmt: skip
    optimizer = torch.optim.Adam(autoencoder.parameters(), 4e-3)
    for step in range(steps):
        x = images[torch.randint(len(images), (32,))]
        latents = autoencoder.encode(x).latent_dist.mode()
        decoded = autoencoder.decode(latents + 0.05 * torch.randn_like(latents)).sample
        loss = (decoded - x).square().mean() + 1e-3 * latents.square().mean()
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        latents = autoencoder.encode(images[:500]).latent_dist.mode()
    autoencoder.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
    print(f"autoencoder: squared error {loss.item():.4f}", flush=True)
    return autoencoder.eval().requires_grad_(False)


def train_base(out: Path, steps: int, batch: int) -> None:
    """A pipeline by flow matching: the velocity z - x at x_t = (1 - t) x + t z, t logit-normal as in the paper."""
    torch.manual_seed(0)
    write_folders(out)
    source = open_source(CLOTHES, SIDE)
    examples = [source[number] for number in range(TRAIN)]
    images = torch.stack([to_tensor(example.image) for example in examples])
    network = SD3Transformer2DModel(
        sample_size=SIDE, patch_size=4, in_channels=4, out_channels=4, num_layers=6, attention_head_dim=32,
        num_attention_heads=4, caption_projection_dim=128, joint_attention_dim=64, pooled_projection_dim=64,
        pos_embed_max_size=8, qk_norm="rms_norm",
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        network, FlowMatchEulerDiscreteScheduler(), train_autoencoder(images), text_encoder(), tokenizer(),
        text_encoder(), tokenizer(), None, None,
    )  # fmt: skip
    pipeline.save_pretrained(out / "base")
    words = [name.lower() for name in source.class_names]
    conditions = PipelineTextEncoder(out / "base", TOKENS)(["", *words])[0]
    labels = torch.tensor([1 + (example.label or 0) for example in examples])
    codec = pipeline.vae
    with torch.no_grad():
        latents = torch.cat([codec.encode(part).latent_dist.mode() for part in images.split(500)])
    latents = (latents - codec.config.shift_factor) * codec.config.scaling_factor
    average = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, (0.9, 0.98), weight_decay=0.0)
    clock = time.perf_counter()
    for step in range(steps):
        numbers = torch.randint(len(latents), (batch,))
        x, z, t = latents[numbers], torch.randn(batch, 4, SIDE, SIDE), torch.randn(batch).sigmoid()
        condition = conditions[torch.where(torch.rand(batch) < 0.1, 0, labels[numbers])]
        x_t = torch.lerp(x, z, t[:, None, None, None])
        velocity = network(x_t, condition[:, 1:, :64], condition[:, 0, :64], 1000 * t, return_dict=False)[0]
        loss = (velocity - (z - x)).square().mean()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, step / 50) * (1 - 0.95 * step / steps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (1 + step) / (10 + step))
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - decay) if value.is_floating_point() else None
        if step % 100 == 99:
            seconds = time.perf_counter() - clock
            print(f"base {step + 1}/{steps}: loss {loss.item():.4f}, {seconds:.0f} s", flush=True)
    network.load_state_dict(average)
    pipeline.save_pretrained(out / "base")


def anystep(*words: str) -> None:
    """Run the command as a user does."""
    print("anystep", *words, flush=True)
    subprocess.run([sys.executable, "-m", "anystep", *words], check=True)


def adapt(out: Path, steps: int, batch: int) -> None:
    """An embedding of the interval and a LoRA of rank 32, with guidance folded in, on the pictures of the base."""
    anystep(
        "train", "adapt-sd3", "--out", str(out / "run"), "--model.weights", str(out / "base"),
        "--model.gradient_checkpointing", "false", "--data.source", str(out / "train"), "--data.size", str(SIDE),
        "--adapt.storage", "float32", "--adapt.caption_tokens", str(TOKENS), "--lora.rank", "32",
        "--objective.guidance", f"{{w_gt: 0, w_cond: {GUIDANCE}, start: 0, end: 1}}",
        "--optimizer.learning_rate", "2e-3", "--optimizer.final", "0.02", "--optimizer.warmup", "20",
        "--run.steps", str(steps), "--run.batch_size", str(batch), "--run.sample_every", "0", "--ema_decay", "0.99",
        "--run.threads", "1", "--run.precision", "float32",
    )  # fmt: skip


@torch.no_grad()
def distances(out: Path) -> None:
    """How far pictures of few steps are from those that the guided base draws of the same noise in 64.

    Mean squared distance of latents, whose variance is about 1, before and after. A table, and `distance.png`.
    """
    import matplotlib.pyplot as plt

    pipeline, counts = load(out / "run", "cpu").pipeline, [int(steps) for steps in STEPS]
    words = [name.lower() for name in open_source(CLOTHES, SIDE).class_names]
    condition, network, transport = pipeline.conditioner(words * 10), pipeline.transformer, make_transport("ot_fm")
    null = pipeline.conditioner.null(10 * len(words))
    z = torch.randn(10 * len(words), 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    drawn = {}
    for name, base in (("before", True), ("after", False)):
        scale = GUIDANCE if base else 1.0
        f = guided(partial(network, base=base), transport, condition, null if base else None, scale)
        drawn[name] = {steps: sample(f, transport, z, steps).sample for steps in counts}
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    print("steps " + " ".join(f"{steps:>7}" for steps in counts))
    for name, found in drawn.items():
        each = [(found[steps] - drawn["before"][64]).square().mean().item() for steps in counts]
        print(f"{name:<6}" + " ".join(f"{value:7.4f}" for value in each))
        evaluations = [steps * (2 if name == "before" else 1) for steps in counts]
        axes.plot(evaluations[:-1], each[:-1], marker="o", label=name)
    axes.set(xscale="log", xlabel="network evaluations", yscale="log", ylabel="squared distance to the end")
    axes.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
    axes.minorticks_off()
    axes.legend()
    figure.savefig(out / "distance.png", dpi=150)


def measure(out: Path, samples: int) -> None:
    """The distances, and the curve of quality against evaluations: the base guided, at two a step, and adapted."""
    distances(out)
    base = f"{out / 'base'}?guidance_scale={GUIDANCE:g}&max_sequence_length={TOKENS}&plan=uniform"
    anystep(
        "evaluate", "--model", base, str(out / "run"), "--steps", *STEPS, "--samples", str(samples), "--data",
        str(out / "real"), "--guidance", "1", "--size", str(SIDE), "--out", str(out / "report"),
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["base", "adapt", "measure"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, help="of training", default=None)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, help="images at each number of steps", default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.part == "base":
        train_base(options.out, options.steps or 1500, options.batch)
    elif options.part == "adapt":
        adapt(options.out, options.steps or 1000, options.batch)
    else:
        measure(options.out, options.samples)
