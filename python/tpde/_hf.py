"""A model of transformers without data, from the configuration in a folder."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tpde._load import Matched, PackedModel
from tpde._status import ArgumentError, CorruptError, NotFoundError, UnsupportedError

_patching = threading.RLock()


def require_transformers() -> Any:
    """Returns transformers. Raises UnsupportedError where it is missing."""
    try:
        import transformers
    except ImportError as error:
        raise UnsupportedError(
            f"tpde.load makes models of transformers, which cannot be imported ({error}): pip install transformers; "
            "or make the module yourself, and tpde.load_into(module, folder)"
        ) from None
    return transformers


def skeleton(folder: str, dtype: torch.dtype, model_class: Any = None) -> Any:
    """Returns the model that config.json in a folder describes, its parameters on the meta device, its other buffers
    computed.

    model_class: a class of transformers; None: the first of `architectures`, or what AutoModelForCausalLM says.
    Raises NotFoundError without a config.json, CorruptError for one that is no JSON, UnsupportedError for a class that
    this transformers does not have, a configuration that it does not read, or a model that is quantised already.
    """
    transformers = require_transformers()
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise NotFoundError(
            f"{path}: no such file, which says what model it is; make the module yourself, and "
            "tpde.load_into(module, folder)"
        )
    try:
        with open(path, encoding="utf-8") as file:
            raw = json.load(file)
    except ValueError as error:
        raise CorruptError(f"{path}: expected JSON: {error}") from None
    if not isinstance(raw, dict):
        raise CorruptError(f"{path}: expected a JSON object, got a {type(raw).__name__}")
    if raw.get("quantization_config"):
        raise UnsupportedError(f"{path}: has a quantization_config, expected the configuration of a full model")
    if raw.get("auto_map") and model_class is None:
        raise UnsupportedError(
            f"{path}: has an auto_map, code of its own that tpde.load does not run; import the class and give it as "
            "model_class"
        )
    if model_class is not None and not (hasattr(model_class, "_from_config") or hasattr(model_class, "from_config")):
        raise ArgumentError(f"model_class: expected a class of transformers, got {model_class!r}")
    source = getattr(model_class, "config_class", None) or transformers.AutoConfig  # the Auto classes have none
    try:
        config = source.from_pretrained(folder)
    except Exception as error:  # ValueError for a kind of model that it does not know, others for odd fields
        raise UnsupportedError(
            f"{path}: transformers {transformers.__version__} cannot make a configuration of it: "
            f"{' '.join(str(error).split())}"
        ) from error
    # transformers 5 still knows the older name, and warns of it.
    setattr(config, "dtype" if hasattr(config, "dtype") else "torch_dtype", dtype)
    if model_class is None:
        names = config.architectures or []
        model_class = getattr(transformers, names[0], None) if names else transformers.AutoModelForCausalLM
        if model_class is None:
            raise UnsupportedError(f"{path}: transformers {transformers.__version__} has no class {names[0]}")
    make = getattr(model_class, "_from_config", None) or getattr(model_class, "from_config", None)
    if make is None:
        raise ArgumentError(f"model_class: expected a class of transformers, got {model_class!r}")
    with _without_data():
        model = make(config)
    _widen(model, dtype)
    config._name_or_path = model.name_or_path = folder
    if model.can_generate() and os.path.isfile(os.path.join(folder, "generation_config.json")):
        model.generation_config = transformers.GenerationConfig.from_pretrained(folder)
    return model.eval()


def matched(module: Any, model: PackedModel) -> Matched:
    """Returns which tensor of a compressed model each of a module of transformers is. Raises and warns as `Matched`."""
    ignored = getattr(module, "_keys_to_ignore_on_load_unexpected", None) or ()
    return Matched(module, model, getattr(module, "base_model_prefix", ""), ignored, widen=True)


def _widen(model: Any, dtype: torch.dtype) -> None:
    """Gives what `from_pretrained` keeps in float32, of a model in a narrower dtype, that dtype."""
    plan = getattr(model, "_get_dtype_plan", None)  # transformers 5
    for pattern, wide in (plan(dtype) if plan is not None else {}).items():
        match = re.compile(pattern.replace("*", ".*"))
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if match.search(name) and tensor.is_floating_point():
                tensor.data = tensor.data.to(wide)


@contextmanager
def _without_data() -> Iterator[None]:
    """Has parameters that this thread makes go to the meta device; buffers are what they are.

    A device of its own (`with torch.device("meta")`) would leave buffers that are computed, of rotary embeddings say,
    without data, too.
    """
    with _patching:
        real, here = nn.Module.register_parameter, threading.get_ident()

        def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
            real(self, name, param)
            if threading.get_ident() == here and param is not None and not param.is_meta:
                moved = nn.Parameter(param.detach().to("meta"), requires_grad=param.requires_grad)
                moved.__dict__.update(param.__dict__)
                self._parameters[name] = moved

        nn.Module.register_parameter = register  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.register_parameter = real  # type: ignore[method-assign]
