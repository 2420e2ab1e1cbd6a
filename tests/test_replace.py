"""Mixtures inside networks of transformers and timm: exact, reachable, trained, checkpointed, repeated."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nestor.experts.cheap import Zero
from nestor.experts.feedforward import GELU, FeedForward
from nestor.layers.mixture import Mixture
from nestor.layers.slot import Slot, recording, remembered
from nestor.measure.trace import load_trace, save_trace, summary
from nestor.routing.adjust import Softmax
from nestor.routing.choose import soft, top_k
from nestor.routing.learned import Dot, Slots
from nestor.routing.refine import renormalise
from nestor.routing.router import ComposedRouter
from nestor.surgery.dense import dense
from nestor.surgery.grow import upcycle
from nestor.surgery.replace import receipt, replace
from nestor.training.balance import Balance, balance, balanced, signal_of
from nestor.types import Signal, Sparse

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


class Net(nn.Module):
    """A foreign network that hands one tensor from block to block."""

    def __init__(self, width: int = 8, depth: int = 3, *, reentrant: bool | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)
        self.reentrant = reentrant
        self.context_fn: Any = None

    def forward(self, x: Tensor) -> Tensor:
        more: dict[str, Any] = {} if self.context_fn is None else {"context_fn": self.context_fn}
        for block in self.blocks:
            x = block(x) if self.reentrant is None else checkpoint(block, x, use_reentrant=self.reentrant, **more)
        return self.head(x.mean(1))


def router(width: int = 8, experts: int = 4, k: int = 2) -> ComposedRouter:
    return ComposedRouter(Dot(width, experts), [Softmax()], partial(top_k, k=k), [renormalise])


def grown(mlp: nn.Module) -> Mixture:
    one = dense(mlp)
    return Mixture(router(one.inward.shape[-1]), upcycle(one, 4))


def mixtures(model: nn.Module) -> list[Mixture]:
    return [part for part in model.modules() if isinstance(part, Mixture)]


def test_a_new_network_with_mixtures_is_exact_and_the_old_one_untouched():
    model, x = Net(), torch.randn(2, 5, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    new = replace(model, "blocks.*.mlp", grown)
    assert type(new) is Net
    torch.testing.assert_close(new(x), model(x))
    assert len(mixtures(new)) == 3
    assert not mixtures(model)
    for block in new.blocks:
        for parameter in block.get_submodule("mlp").parameters():
            parameter.data.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # What was saved of one is loaded into another to which the same was done.
    again = replace(Net(), "blocks.*.mlp", grown)
    again.load_state_dict(new.state_dict())
    torch.testing.assert_close(again(x), new(x))


def test_patterns_choose_by_steps_of_the_path():
    model = Net()
    assert [n for n, m in replace(model, "blocks.[02].mlp", grown).named_modules() if isinstance(m, Slot)] == [
        "blocks.0.mlp",
        "blocks.2.mlp",
    ]
    chosen = replace(model, ("blocks.0.mlp", "head"), lambda part: nn.Identity())
    assert isinstance(chosen.head, nn.Identity)
    assert isinstance(chosen.get_submodule("blocks.0.mlp"), nn.Identity)
    assert not chosen.eval().blocks[0].training


def test_a_shared_part_is_built_once():
    model = Net(depth=2)
    model.blocks[1] = model.blocks[0]
    new, x = replace(model, "blocks.*.mlp", grown), torch.randn(1, 3, 8)
    assert len(mixtures(new)) == 1
    assert new.blocks[0] is new.blocks[1]
    with recording() as record:
        torch.testing.assert_close(new(x), model(x))
    assert len(record.routings) == 2
    assert [len(several) for several in record.by_name.values()] == [2]


def test_records_hold_what_was_decided_and_only_while_they_are_open():
    model, x = replace(Net(), "blocks.*.mlp", grown), torch.randn(2, 5, 8)
    with recording() as record:
        model(x)
        with recording() as inner:
            model(x[:1])
    model(x)
    assert list(record.by_name) == ["blocks.0.mlp", "blocks.1.mlp", "blocks.2.mlp"]
    assert [len(part.scores) for part in (*record.routings, *inner.routings)] == [2, 2, 2, 1, 1, 1]
    assert not [part for part in model.modules() if isinstance(part, Slot) and "record" in vars(part)]


def test_two_threads_do_not_mix_their_records():
    from threading import Barrier, Thread

    model, found, barrier = replace(Net(), "blocks.*.mlp", grown), {}, Barrier(2)

    def call(items: int) -> None:
        with recording() as record:
            barrier.wait()
            model(torch.randn(items, 5, 8))
            found[items] = [len(part.scores) for part in record.routings]

    threads = [Thread(target=call, args=(items,)) for items in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {1: [1, 1, 1], 2: [2, 2, 2]}


def gradients(model: nn.Module, x: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    model.zero_grad()
    with recording(Signal(mask=mask)) as record:
        answer = model(x)
    (answer.square().sum() + balance([Balance(weight=0.5)], record.routings, mask)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_balance_losses_reach_routers_through_gradient_checkpointing():
    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    mask[:, 3:] = False
    plain = replace(Net(), "blocks.*.mlp", lambda mlp: Mixture(router(k=1), upcycle(dense(mlp), 4, noise=0.1)))
    kept = replace(Net(reentrant=False), "blocks.*.mlp", lambda mlp: Mixture(router(k=1), upcycle(dense(mlp), 4)))
    kept.load_state_dict(plain.state_dict())
    expected = gradients(plain, x)
    for name in ("blocks.0.mlp.layer.router.score.weight", "blocks.2.mlp.layer.experts.inward"):
        assert expected[name].any(), name
    torch.testing.assert_close(gradients(kept, x), expected)
    # With one choice and weights of one, the routers learn from the balance loss alone.
    plain.zero_grad()
    plain(x).sum().backward()
    weight = plain.get_parameter("blocks.1.mlp.layer.router.score.weight")
    assert weight.grad is not None
    assert weight.grad.abs().max() < 1e-5
    # What is recomputed must see the mask that was there at first.
    kept.context_fn = remembered
    torch.testing.assert_close(gradients(kept, x, mask), gradients(plain, x, mask))


def test_what_hides_gradients_is_refused():
    model = replace(Net(reentrant=True), "blocks.*.mlp", grown)
    with recording() as record:
        model(torch.randn(2, 5, 8, requires_grad=True))
    with pytest.raises(ValueError, match=r"decisions with a gradient; got none\. Use use_reentrant=False"):
        balance([Balance()], record.routings)
    with torch.no_grad():
        assert balance([Balance()], record.routings) > 0
    with pytest.raises(ValueError, match="need sparse decisions; got 0 soft ones"):
        balance([Balance()], ())


def test_traces_are_saved_read_and_repeated(tmp_path: Path):
    model, x = replace(Net(), "blocks.*.mlp", grown), torch.randn(2, 5, 8)
    with recording() as record:
        expected = model(x)
    save_trace(tmp_path / "trace.safetensors", record.by_name)
    trace = load_trace(tmp_path / "trace.safetensors")
    for name, several in record.by_name.items():
        for ours, theirs in zip(several, trace[name], strict=True):
            assert isinstance(ours, Sparse)
            assert isinstance(theirs, Sparse)
            assert ours.origin is not None
            assert theirs.origin is not None
            for part in ("scores", "index", "weight"):
                assert torch.equal(getattr(ours, part), getattr(theirs, part))
            assert torch.equal(ours.origin.wanted, theirs.origin.wanted)
    for part in mixtures(model):
        nn.init.normal_(part.router.get_parameter("score.weight"))
    with recording(replay=trace) as again:
        torch.testing.assert_close(model(x), expected)
    assert [torch.equal(a.counts, b.counts) for a, b in zip(record.routings, again.routings, strict=True)] == [True] * 3
    assert list(summary(trace)) == list(trace)
    with (
        pytest.raises(ValueError, match=r"one decision for each call of each slot; got none left for 'blocks\.0\.mlp'"),
        recording(replay=trace),
    ):
        model(x + model(x).mean())
    (tmp_path / "other.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"other\.safetensors"):
        load_trace(tmp_path / "other.safetensors")


def test_soft_decisions_are_traced_too(tmp_path: Path):
    layer = Mixture(ComposedRouter(Slots(8, 2, slots=3), [], partial(soft, slots=3)), FeedForward(8, 4, 2))
    slot, x = Slot("one", layer), torch.randn(2, 3, 5, 8)
    with recording() as record:
        expected = slot(x)
    assert expected.shape == x.shape
    save_trace(tmp_path / "trace", record.by_name)
    with recording(replay=load_trace(tmp_path / "trace")):
        torch.testing.assert_close(slot(x), expected)
    rows = torch.randn(7, 8)
    torch.testing.assert_close(slot(rows), layer(rows[None])[0][0])


def test_receipts_tell_what_changed():
    model, x = Net(), torch.randn(2, 5, 8)
    exact = receipt(model, replace(model, "blocks.*.mlp", grown), x)
    assert exact.error < 1e-6
    assert exact.before == sum(p.numel() for p in model.parameters())
    # Four copies of each part, and a router.
    assert exact.after == exact.before + 3 * (3 * (2 * 8 * 16 + 16 + 8) + 4 * 8)
    cut = replace(model, "blocks.*.mlp", lambda mlp: Mixture(router(), Zero(4)))
    assert receipt(model, cut, x).error > 0.01
    assert "relative error" in str(exact)
    with pytest.raises(ValueError, match="answers of one shape"):
        receipt(model, replace(model, "head", lambda head: nn.Identity()), x)


def timm_vit() -> nn.Module:
    import timm

    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=3, embed_dim=24, num_heads=2)


def test_a_network_of_timm():
    model, x = timm_vit().eval(), torch.randn(2, 3, 32, 32)
    new = replace(model, "blocks.*.mlp", grown)
    assert receipt(model, new, x).error < 1e-5
    with recording() as record:
        new(x)
    assert [part.scores.shape for part in record.routings] == [(2, 5, 4)] * 2


def transformers_vit(**changes: Any) -> nn.Module:
    from transformers import ViTConfig, ViTForImageClassification

    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    config = {"image_size": 32, "patch_size": 16, "num_labels": 3}
    return ViTForImageClassification(ViTConfig.from_dict(sizes | config | changes))


class Few(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, object]:
        generator = torch.Generator().manual_seed(index)
        return {"pixel_values": torch.randn(3, 32, 32, generator=generator), "labels": index % 3}


def test_a_network_of_transformers_and_its_trainer(tmp_path: Path):
    from transformers import Trainer, TrainingArguments

    model = transformers_vit().eval()
    names = [name for name, _ in model.named_modules() if name.endswith(".mlp")]
    assert len(names) == 2
    new = replace(model, names, lambda mlp: Mixture(router(24, k=1), upcycle(dense(mlp), 4)))
    assert receipt(model, new, torch.randn(2, 3, 32, 32)).error < 1e-5
    for part in mixtures(new):
        # All tokens prefer the first two experts, which one choice with a weight of one would never change.
        with torch.no_grad():
            part.router.get_parameter("score.weight")[2:] -= 0.1
    start = {name: p.detach().clone() for name, p in new.named_parameters() if "router" in name}
    # The name changed within version 5.
    name = "activation_checkpointing" if hasattr(new, "activation_checkpointing_enable") else "gradient_checkpointing"
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.1,
        optim="sgd",
        weight_decay=0.0,
        use_cpu=True,
        dataloader_pin_memory=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        **{name: True, f"{name}_kwargs": {"use_reentrant": False, "context_fn": remembered}},
    )
    trainer = balanced(Trainer, [Balance(weight=1.0)])(model=new, args=arguments, train_dataset=Few())
    found = trainer.train()
    assert found.global_step == 2
    assert all(not torch.equal(start[n], p) for n, p in new.named_parameters() if "router" in n)
    batch = {key: torch.stack([torch.as_tensor(Few()[i][key]) for i in range(4)]) for key in Few()[0]}
    new.eval()
    with torch.no_grad(), recording() as record:
        plain = new(**batch)["loss"]
        loss = trainer.compute_loss(new, dict(batch))
        torch.testing.assert_close(loss, plain + balance([Balance(weight=1.0)], record.routings))


def test_a_batch_tells_its_padding():
    mask = torch.tensor([[1, 1, 0]])
    found = signal_of({"attention_mask": mask}).mask
    assert found is not None
    assert found.tolist() == [[True, True, False]]
    assert signal_of({"attention_mask": torch.ones(1, 1, 3, 3)}).mask is None
    assert signal_of({}).mask is None


def readable(kind: str) -> nn.Module:
    from timm.layers.mlp import GluMlp, Mlp, SwiGLU, SwiGLUPacked
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    made = {
        "mlp": lambda: Mlp(8, 12, drop=0.3),
        "relu": lambda: Mlp(8, 12, act_layer=nn.ReLU, bias=(True, False)),
        "glu": lambda: GluMlp(8, 12),
        "packed": lambda: SwiGLUPacked(8, 12),
        "apart": lambda: SwiGLU(8, 12),
        "llama": lambda: LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=12, num_attention_heads=2)),
        "tanh": lambda: nn.Sequential(nn.Linear(8, 12), nn.GELU("tanh"), nn.Linear(12, 6)),
    }
    return made[kind]()


@pytest.mark.parametrize("kind", ["mlp", "relu", "glu", "packed", "apart", "llama", "tanh"])
def test_feed_forward_parts_of_any_make_are_read(kind: str):
    part = readable(kind)
    one, rows = dense(part), torch.randn(7, 8)
    assert part.training
    torch.testing.assert_close(one(rows, torch.tensor([7])), part.eval()(rows))


def odd() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.GELU(), nn.LayerNorm(12), nn.Linear(12, 8))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: replace(Net(), "layers.*.mlp", grown), r"got 'layers\.\*\.mlp'. This network has blocks, blocks\.\*"),
        (lambda: replace(Net(), (), grown), "got no pattern"),
        (lambda: replace(Net(), ("blocks.0", "blocks.*.mlp"), grown), "got 'blocks.0.mlp' in 'blocks.0'"),
        (lambda: dense(nn.Linear(8, 8)), "two linear maps, or three if gated; got 1 in Linear"),
        (lambda: dense(odd()), "no reading of Sequential gives its answers"),
        (lambda: Balance(kind="even"), "kind must be one of switch, .*; got 'even'"),
        (lambda: Balance(weight=0), "needs a positive weight; got 0"),
        (
            lambda: FeedForward.of(torch.ones(1, 3, 2), torch.ones(1, 2, 4), activation=GELU),
            r"inward must be \(1, 4, 2",
        ),
    ],
)
def test_errors_name_rule_value_and_repair(call, message):
    with pytest.raises(ValueError, match=message):
        call()
