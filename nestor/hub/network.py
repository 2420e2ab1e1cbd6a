"""The elastic vision transformer under transformers' names."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, ImageClassifierOutput
from transformers.utils.generic import can_return_tuple

from nestor.hub.card import push, write_card
from nestor.hub.config import NestorConfig
from nestor.models.saved import save_tensors
from nestor.models.timm_style import with_body
from nestor.models.vit import ViT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from nestor.layers.embed import PatchEmbed
    from nestor.measure.record import Profile

PROFILE = "profile.json"


class NestorPreTrainedModel(PreTrainedModel):
    """What both classes have in common: a `ViT`, its budget, and the one format on disk."""

    config_class = NestorConfig
    config: NestorConfig
    base_model_prefix = "vit"
    main_input_name = "pixel_values"
    input_modalities = "image"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["ViT"]  # noqa: RUF012
    _head = False

    def __init__(self, config: NestorConfig, network: ViT | None = None):
        super().__init__(config)
        self.vit = ViT(config.network(head=self._head)) if network is None else network
        self.post_init()

    @classmethod
    def from_nestor(cls, model: ViT) -> Self:
        """The same network, with the same weights in memory, as a class of transformers.

        Raises:
            ValueError: a classifier is wanted and the network has no head.
        """
        own, budget = model.settings, model.budget
        if cls._head and not own.classes:
            raise ValueError("a classifier needs a head and this network has none. Fit it first: nestor.fit.")
        if not cls._head and own.classes:
            model = with_body(model, replace(own, classes=0, labels=()))
        new = cls(NestorConfig.of(own), model).train(model.training)
        # A head is part of the cost, so that the least budget differs a little without it.
        new.budget = max(budget, new.least_budget)
        return new

    @property
    def budget(self) -> float:
        """The fraction of the full network's multiply-accumulates that a forward pass may spend."""
        return self.vit.budget

    @budget.setter
    def budget(self, value: float) -> None:
        self.vit.budget = value

    @property
    def least_budget(self) -> float:
        """The smallest budget that the widths allow for pictures of the nominal size."""
        side = self.vit.settings.nominal // self.vit.settings.patch
        return self.vit.least_budget(side * side)

    def get_input_embeddings(self) -> nn.Module:
        """What turns pictures into tokens."""
        return self.vit.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another module in its place."""
        self.vit.embed = cast("PatchEmbed", value)

    @property
    def gradient_checkpointing(self) -> bool:
        """Recompute each block in the backward pass instead of keeping its activations."""
        return self.vit.checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        self.vit.checkpointing = value

    def save_pretrained(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        save_directory: str | PathLike[str],
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str | None = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        distributed_checkpoint: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write a folder that `from_pretrained` and `nestor.load` both read; weights are one safetensors file.

        Args:
            save_directory: the folder.
            is_main_process: whether this process is to write.
            state_dict: weights to write instead of the network's own.
            push_to_hub: upload it too, to `repo_id` or a repository of the folder's name.
            max_shard_size, save_original_format: without effect: there is one file, in one format.
            variant, distributed_checkpoint: not to be had, for `nestor.load` would not find the weights.
            token: for the hub.
            save_peft_format: how adapters are named, where there are any: they alone are written then.
            kwargs: `repo_id` and what else `push_to_hub` takes.

        Raises:
            OSError: the folder cannot be written.
            ValueError: a variant or a distributed checkpoint is asked for.
        """
        if variant is not None or distributed_checkpoint:
            raise ValueError(
                f"weights are one file of one name; got variant={variant!r}, "
                f"distributed_checkpoint={distributed_checkpoint}. Leave both out, and save to a folder of its own."
            )
        if getattr(self, "_hf_peft_config_loaded", False):
            super().save_pretrained(
                save_directory,
                is_main_process=is_main_process,
                state_dict=state_dict,  # pyright: ignore[reportArgumentType]
                push_to_hub=push_to_hub,
                token=token,
                save_peft_format=save_peft_format,
                **kwargs,
            )
            return
        folder = Path(save_directory)
        if is_main_process:
            self._write(folder, self.state_dict() if state_dict is None else state_dict)
        if push_to_hub and is_main_process:
            self.push_to_hub(kwargs.pop("repo_id", folder.name), token=token, **kwargs)

    def push_to_hub(  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]
        self,
        repo_id: str,
        *,
        profile: Profile | str | Path | None = None,
        licence: str | None = None,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "50GB",
        tags: Sequence[str] | None = None,
    ) -> str:
        """Upload the network with a model card (`nestor.hub.write_card`), and return the address of the commit.

        Args:
            repo_id: `user/name`.
            profile: what `nestor profile` measured, or its file; by default `profile.json` in the folder that the
                network was read from, if there is one.
            licence: of the source weights, as the hub names it (`apache-2.0`).
            commit_message, commit_description, private, token, revision, create_pr: as transformers has them.
            max_shard_size: without effect: weights are one file.
            tags: for the card, beside its own.

        Raises:
            OSError: the hub cannot be reached, or refuses.
            ValueError: the profile cannot be read.
        """
        if profile is None and (found := Path(self.config.name_or_path or ".") / PROFILE).is_file():
            profile = found
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            write_card(folder, self.vit.settings, name=repo_id, profile=profile, licence=licence, tags=tags or ())
            return push(
                folder,
                repo_id,
                commit_message=commit_message or "Upload network",
                commit_description=commit_description,
                private=private,
                token=token,
                revision=revision,
                create_pr=create_pr,
            )

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False) -> Any:
        """Take tensors under transformers' names or ours, as files have them: a Trainer that resumes reads those.

        Raises:
            RuntimeError: tensors are missing, misshapen or left over.
        """
        own = f"{self.base_model_prefix}."
        named = {name if name.startswith(own) else own + name: tensor for name, tensor in state_dict.items()}
        return super().load_state_dict(named, strict=strict, assign=assign)

    def _write(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        settings = self.vit.settings
        if self._head:
            # Labels may have got their names after the network was built.
            settings = replace(settings, labels=self.config.network(head=True).labels)
        config = self.config.to_dict() | {
            "architectures": [type(self).__name__],
            "dtype": str(self.dtype).removeprefix("torch."),
        }
        if not self._head:
            # Nobody shall take the labels of a head that is not there for those of a new one.
            config |= {"id2label": {}, "label2id": {}}
        plain = {name.removeprefix(f"{self.base_model_prefix}."): tensor for name, tensor in tensors.items()}
        save_tensors(settings, plain, folder, config)

    def init_weights(self) -> None:
        """Nothing: a ViT draws its weights when it is built."""

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """After reading a file: tensors that it lacks, such as those of a new head, become those of a fresh network."""
        lacking = {
            name: tensor
            for name, tensor in self.vit.state_dict(keep_vars=True).items()
            if not getattr(tensor, "_is_hf_initialized", False)
        }
        if lacking:
            with torch.device("cpu"):
                fresh = ViT(self.vit.settings).state_dict()
            for name, tensor in lacking.items():
                tensor.copy_(fresh[name])

    def _require_no(self, **wanted: Any) -> None:
        for name, value in wanted.items():
            if value if value is not None else getattr(self.config, name, False):
                raise ValueError(
                    f"{name} must be off: between the blocks tokens have different widths, so that there is no one "
                    "tensor to return. Read the routings instead: model.vit(images).routings."
                )


class NestorModel(NestorPreTrainedModel):
    """The network without a head: pictures into tokens."""

    _keys_to_ignore_on_load_unexpected = [r"^head\."]  # noqa: RUF012

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        budget: float | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
    ) -> BaseModelOutput:
        """(B, 3, H, W), normalised -> tokens after the final norm, `last_hidden_state` (B, T, D), prefix first.

        Args:
            pixel_values: pictures.
            budget: overrides `self.budget` for this call.
            output_hidden_states, output_attentions: not to be had.
            interpolate_pos_encoding: without effect, as positions always follow the size.

        Raises:
            ValueError: the pictures do not fit the patches, the budget cannot be met, or hidden states are asked for.
        """
        self._require_no(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        return BaseModelOutput(last_hidden_state=self.vit(pixel_values, budget).tokens)  # pyright: ignore[reportArgumentType]


class NestorForImageClassification(NestorPreTrainedModel):
    """The network with a head: pictures into logits, and the loss where labels are given."""

    _head = True

    @can_return_tuple
    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        budget: float | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """(B, 3, H, W), normalised, and perhaps labels (B,) -> `logits` (B, classes) and `loss`.

        Args:
            pixel_values: pictures.
            labels: (B,) for one class each, (B, classes) for several, (B,) of real numbers for regression.
            budget: overrides `self.budget` for this call.
            output_hidden_states, output_attentions: not to be had.
            interpolate_pos_encoding: without effect, as positions always follow the size.
            kwargs: for the loss.

        Raises:
            ValueError: the pictures do not fit the patches, the budget cannot be met, or hidden states are asked for.
        """
        self._require_no(output_hidden_states=output_hidden_states, output_attentions=output_attentions)
        logits = self.vit(pixel_values, budget).logits
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(loss=loss, logits=logits)
