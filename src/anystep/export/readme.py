"""The page of an exported folder."""

from collections.abc import Mapping, Sequence

from anystep.errors import one_line
from anystep.export.programs import Program
from anystep.markdown import markdown_table
from anystep.pipelines.transition import TransitionPipeline

FILES = {
    "sample.py": "draws with the files here, by onnxruntime and NumPy alone; read it to port the model",
    "model.json": "transport, plans of steps, guidance, sizes and names, as plain values",
    "tokenizer/": "of the text encoder",
    "null_states.npy": "states of the empty caption, which guidance leads away from",
    "report.json": "how far each file is from the model that it was made of",
}
LOOP = """\
One step carries a sample from time t to any lower time r with one evaluation `F = network(x, t, r, condition)`:

    x_r = A x_t + B F        A = (alpha_r sigma_hat_t - sigma_r alpha_hat_t) / D
                             B = (sigma_r alpha_t - alpha_r sigma_t) / D
    D = alpha_t sigma_hat_t - sigma_t alpha_hat_t

on the transport of `model.json` (Transition Models, arXiv 2509.04394); for `ot_fm` that is x_r = x_t + (r - t) F."""


def readme(
    name: str,
    pipeline: TransitionPipeline,
    programs: Sequence[Program],
    differences: Mapping[str, float],
    tolerance: float,
) -> str:
    """What lies in the folder, how to draw with it, and how far each part is off."""
    text = pipeline.transformer.config.text_width is not None
    encoded = any(each.name == "text_encoder" for each in programs)
    left_out = {"tokenizer/"} if not encoded else set()
    files = [(f"`{each.name}.onnx`", f"{', '.join(each.inputs)} to {each.output[0]}") for each in programs]
    files += [("`network.pt2`", "the network again, for `torch.export.load`")]
    files += [(f"`{file}`", what) for file, what in FILES.items() if file not in left_out and (text or "/" not in file)]
    files = [each for each in files if text or "null_states" not in each[0]]
    asked = '"a red apple"' if encoded else "--states caption.npy" if text else "0"
    lines = [
        f"# {one_line(name)}, exported by anystep", "",
        f"    pip install onnxruntime numpy\n    python sample.py {asked} --steps 4 --seed 0 --out image.png", "",
        *(["`--states` are those of a caption (tokens, width): `np.save(\"caption.npy\", "
           "pipe.encode_prompt(\"a red apple\").prompt_embeds[0])` of the pipeline in anystep.", ""]
          if text and not encoded else []),
        f"All sizes of a batch are free: images, height and width, tokens of captions. Sides of images are multiples "
        f"of {pipeline.size_multiple} pixels; the model was trained at {pipeline.base_size}. Weights are float32. "
        f"Licence: {one_line(pipeline.config.license or 'not said')}.", "",
        *markdown_table(["file", "what it is"], files, "ll"), "",
        LOOP, "",
        f"Largest differences from the model, in parts of its largest answer ({tolerance:g} is refused):", "",
        *markdown_table(["part", "difference"], [(part, f"{found:.1e}") for part, found in differences.items()], "lr"),
        "",
    ]  # fmt: skip
    return "\n".join(lines)
