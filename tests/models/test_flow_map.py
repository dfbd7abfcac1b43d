"""Flow maps of diffusers' transformers: they answer as their base, until the interval is learned, and know it apart."""

from typing import Any

import diffusers_pipelines
import pytest
import torch
from torch import Tensor

from anystep.errors import InputError
from anystep.flow_families import joined_states
from anystep.models.flow_map import FlowMapOptions, FlowMapTransformer, base_probe, blocks_of, embedding_of
from anystep.models.lora import add_lora

FAMILIES = ("sd3", "flux", "sana")
T, R = torch.tensor([0.3, 0.9]), torch.tensor([0.1, 0.9])


class Case:
    """A base, one batch of inputs, and what the base answers by its own interface."""

    def __init__(self, family: str, **options: Any) -> None:
        self.family, self.pipeline = family, diffusers_pipelines.make(family)
        self.transformer: Any = self.pipeline.transformer.eval()
        for parameter in self.transformer.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        self.x, self.mask = torch.randn(2, 4, 8, 8), None
        if family == "sana":
            self.condition = torch.randn(2, 7, 16)
            self.mask = torch.arange(7) < torch.tensor([[4], [7]])
        else:
            states, pooled = torch.randn(2, 7, 32), torch.randn(2, self.transformer.config.pooled_projection_dim)
            self.condition = joined_states(states, pooled)
        self.probe = base_probe(self.transformer)
        self.answer = self.of_the_base()
        self.network = FlowMapTransformer(self.transformer, FlowMapOptions(**options))

    def of_the_base(self) -> Tensor:
        transformer, x, condition = self.transformer, self.x, self.condition
        options: dict[str, Any] = {"return_dict": False}
        if self.family == "sana":
            options |= {"encoder_hidden_states": condition, "encoder_attention_mask": self.mask, "timestep": 1000 * T}
            return transformer(x, **options)[0]  # type: ignore[no-any-return]
        options |= {
            "encoder_hidden_states": condition[:, 1:, :32],
            "pooled_projections": condition[:, 0, : transformer.config.pooled_projection_dim],
        }
        if self.family == "sd3":
            return transformer(x, timestep=1000 * T, **options)[0]  # type: ignore[no-any-return]
        pipeline = self.pipeline
        ids = pipeline._prepare_latent_image_ids(2, 4, 4, "cpu", torch.float32)
        tokens = transformer(
            pipeline._pack_latents(x, 2, 4, 8, 8), timestep=T, guidance=torch.full((2,), 3.5), img_ids=ids,
            txt_ids=torch.zeros(7, 3), **options,
        )[0]  # fmt: skip
        side = 8 * pipeline.vae_scale_factor
        return pipeline._unpack_latents(tokens, side, side, pipeline.vae_scale_factor)  # type: ignore[no-any-return]

    def __call__(self, t: Tensor = T, r: Tensor = R, **options: Any) -> Tensor:
        return self.network(self.x, t, r, self.condition, self.mask, **options)  # type: ignore[no-any-return]

    def learn(self) -> None:
        """Move what a run would move."""
        for name, value in self.network.named_parameters():
            if ("_embedder.linear_2" in name and value.requires_grad and "base" not in name) or "lora_B" in name:
                torch.nn.init.normal_(value, std=0.5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_new_flow_map_answers_bit_for_bit_as_its_base_whatever_the_interval(family: str, share: float) -> None:
    case = Case(family, interval_share=share, guidance_embed=family != "flux")
    assert torch.equal(case(), case.answer)
    assert torch.equal(case(r=torch.zeros(2)), case.answer)
    assert case.answer.std() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_depends_on_the_interval_and_leaves_the_base_to_be_asked(family: str) -> None:
    case = Case(family)
    add_lora(case.transformer, 2, 2.0, ["to_q"])
    embedding_of(case.transformer).requires_grad_(True)
    torch.testing.assert_close(case(), case.answer, rtol=1e-5, atol=1e-6)
    case.learn()
    assert (case() - case.answer).abs().mean() > 0.01
    assert (case() - case(r=torch.zeros(2))).abs().flatten(1).mean(1).min() > 0.01
    torch.testing.assert_close(case(base=True), case.answer, rtol=1e-5, atol=1e-6)
    assert not case(base=True).requires_grad
    assert case().requires_grad
    assert torch.equal(base_probe(case.transformer), case.probe)


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_last_blocks_are_given_the_interval(family: str) -> None:
    case = Case(family, interval_share=0.5)
    case.learn()
    blocks = blocks_of(case.transformer)
    if len(blocks) < 2:
        blocks.append(blocks[0])
    name, place = ("timestep", 4) if family == "sana" else ("temb", 2)
    seen: list[Tensor] = []

    def note(block: Any, args: Any, kwargs: Any) -> None:
        seen.append(kwargs.get(name, args[place] if len(args) > place else None))

    for block in blocks_of(case.transformer):
        block.register_forward_pre_hook(note, with_kwargs=True)
    with torch.no_grad():
        case()
        near, seen = seen, []
        case(r=torch.zeros(2))
    same = [torch.equal(*pair) for pair in zip(near, seen, strict=True)]
    assert same == [True] * (len(same) // 2) + [False] * (len(same) - len(same) // 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointing_gives_the_same_gradients_though_other_times_are_asked_between(family: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        case = Case(family, interval_share=0.5)
        torch.manual_seed(1)
        case.learn()
        if checkpointing:
            case.network.train().enable_gradient_checkpointing()
        answer = case()
        with torch.no_grad():
            case(t=0.5 * T)
        answer.square().sum().backward()
        gradients.append({name: value.grad for name, value in case.network.named_parameters()})
    plain, again = gradients
    assert any("interval_embedder" in name and bool(value.any()) for name, value in plain.items())  # type: ignore
    for name, value in plain.items():
        torch.testing.assert_close(again[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_times_are_not_rounded_where_blocks_compute_in_half_precision(family: str) -> None:
    case = Case(family)
    seen: list[Tensor] = []
    embedding_of(case.transformer).register_forward_hook(
        lambda part, args, out: seen.append(out[1] if isinstance(out, tuple) else out)
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for t in (0.7, 0.7002):
            case(t=torch.full((2,), t), r=torch.zeros(2))
    near, far = seen
    assert near.dtype == torch.float32
    assert 0 < (far - near).abs().max() < 0.1


def test_a_network_that_is_given_the_guidance_scale_answers_by_it() -> None:
    case = Case("sd3", guidance_embed=True)
    case.learn()
    plain, told = case(), case(guidance=torch.tensor([1.0, 4.0]))
    assert torch.equal(plain[0], told[0])
    assert not torch.allclose(plain[1], told[1])


def test_the_configuration_is_that_of_a_transition_transformer() -> None:
    config = Case("flux", sample_size=8).network.config
    assert (config["in_channels"], config["patch_size"], config["sample_size"]) == (4, 2, 8)
    assert config["guidance_embed"]
    assert config["num_classes"] is None
    assert Case("sd3").network.config["text_width"] == 32


def test_what_cannot_be_a_flow_map_is_refused() -> None:
    with pytest.raises(InputError, match="SANA-Sprint"):
        FlowMapTransformer(diffusers_pipelines.make("sana-sprint").transformer, FlowMapOptions())
    with pytest.raises(InputError, match=r"UNet2DConditionModel.*cannot be made a flow map"):
        FlowMapTransformer(diffusers_pipelines.make("sdxl").unet, FlowMapOptions())
    case = Case("sd3")
    with pytest.raises(InputError, match="a flow map already"):
        FlowMapTransformer(case.transformer, FlowMapOptions())
    with pytest.raises(InputError, match="key_grid 4"):
        case(key_grid=4)
    assert torch.equal(case(key_grid=None, mask_text=True), case.answer)
