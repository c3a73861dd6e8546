"""Importing the package is free: no Go, no CUDA, no torch."""

from __future__ import annotations

import pytest

import tpde


def test_import_starts_nothing(python):
    result = python(
        "import sys, tpde\n"
        "assert 'libtpde' not in open('/proc/self/maps').read()\n"
        "assert 'torch' not in sys.modules\n"
        "import torch, tpde.nn, tpde.cli\n"
        "tpde.pack, tpde.encode, tpde.nn.JITCompressedLinear, torch.ops.tpde.reconstruct\n"
        "assert 'libtpde' not in open('/proc/self/maps').read()\n"
        "assert not torch.cuda.is_initialized()\n"
    )
    assert result.returncode == 0, result.stderr


def test_files_need_no_torch(python, data):
    result = python(
        "import sys, tpde\n"
        "d = sys.argv[1]\n"
        "tpde.pack(d + '/rl/step20.safetensors', d + '/rl/step21.safetensors', 'delta.safetensors')\n"
        "tpde.unpack(d + '/rl/step20.safetensors', 'delta.safetensors', 'out.safetensors')\n"
        "assert 'torch' not in sys.modules\n",
        str(data),
    )
    assert result.returncode == 0, result.stderr


def test_every_public_name_resolves():
    for name in tpde.__all__:
        assert getattr(tpde, name) is not None
    assert set(tpde.__all__) <= set(dir(tpde))


def test_unknown_name():
    with pytest.raises(AttributeError, match="no_such_name"):
        tpde.no_such_name  # noqa: B018


def test_every_exception_is_exported():
    from tpde import _status

    for exception in _status.EXCEPTIONS.values():
        assert getattr(tpde, exception.__name__) is exception
        assert exception.__name__ in tpde.__all__
