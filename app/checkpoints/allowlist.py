"""The names that a pickle may hold. No name is ever looked up here, so none can do harm. But loading the same
file with torch or fastai would run the functions that it names, and the owner ought to be told.

Two lists: the exact needs of a file of weights; and the names that exported learners and whole models refer
to. Those may be anything in a notebook, so functions that act are refused and the rest may stand.
"""

import sys
from typing import Final

STORAGES: Final = (
    "DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "LongStorage", "IntStorage",
    "ShortStorage", "CharStorage", "ByteStorage", "BoolStorage",
)  # fmt: skip

# All that `Learner.save` writes: the tensors, and in `opt` numpy scalars and fastcore's list.
WEIGHTS: Final = frozenset(
    {("torch", name) for name in STORAGES}
    | {("torch", name) for name in ("Size", "device", "float32", "float16", "bfloat16", "float64", "int64")}
    | {(module, "scalar") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
    | {(module, "_reconstruct") for module in ("numpy.core.multiarray", "numpy._core.multiarray")}
    | {(module, "set") for module in ("builtins", "__builtin__")}
    | {
        (module, name)
        for module in ("fastai.torch_core", "fastai2.torch_core")
        for name in ("TensorBase", "_fa_rebuild_tensor", "_rebuild_from_type")
    }
    | {
        ("collections", "OrderedDict"),
        ("collections", "defaultdict"),
        ("torch._utils", "_rebuild_tensor"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("torch._utils", "_rebuild_parameter_with_state"),
        ("torch._tensor", "_rebuild_from_type"),
        ("torch._tensor", "_rebuild_from_type_v2"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.storage", "_load_from_bytes"),
        ("fastcore.foundation", "L"),
        ("numpy", "dtype"),
        ("numpy", "ndarray"),
        ("_codecs", "encode"),
        # harmless records that training scripts keep beside the weights
        ("argparse", "Namespace"),
        ("collections", "Counter"),
        ("datetime", "datetime"),
        ("datetime", "timedelta"),
        ("pathlib", "PosixPath"),
        ("pathlib", "PurePosixPath"),
        ("pathlib", "WindowsPath"),
    }
)

# The standard library acts; of it a learner refers to these modules, and to these built-in names.
STANDARD: Final = frozenset(
    "__future__ _codecs _collections_abc _operator _random _thread abc argparse collections copy copy_reg "
    "copyreg dataclasses datetime decimal enum fractions functools inspect itertools math numbers "
    "operator pathlib random re sre_compile statistics string threading time types typing uuid warnings "
    "weakref".split()
)
BUILTINS: Final = frozenset(
    "AttributeError Ellipsis Exception IndexError KeyError NotImplemented NotImplementedError "
    "RuntimeError StopIteration TypeError ValueError abs all any bool bytearray bytes classmethod complex "
    "dict divmod enumerate filter float format frozenset getattr hasattr hash id int isinstance "
    "issubclass iter len list long map max min next object pow print property range reduce repr reversed "
    "round set slice sorted staticmethod str sum super tuple type unicode xrange zip".split()
)
REMOVED_STDLIB: Final = frozenset(  # of the standard library once, or of Python 2
    "__builtin__ asynchat asyncore commands distutils httplib imp lib2to3 nt pipes popen2 posix smtpd "
    "telnetlib urllib2".split()
)

# Third parties: these act (install, download, run), as do these parts of packages in every notebook.
UNSAFE_PACKAGES: Final = frozenset(
    "aiohttp cffi fsspec httpx huggingface_hub joblib keras paramiko pip pkg_resources pycurl requests "
    "setuptools sh tensorflow transformers urllib3".split()
)
ACTING_MODULES: Final = (
    "IPython.utils", "numpy.distutils", "numpy.f2py", "numpy.testing", "pandas.core.computation",
    "pandas.io", "sklearn.datasets", "torch._dynamo", "torch._inductor", "torch.distributed", "torch.fx",
    "torch.hub", "torch.jit", "torch.multiprocessing", "torch.package", "torch.serialization",
    "torch.utils._config_module", "torch.utils.bottleneck", "torch.utils.cpp_extension",
    "torch.utils.collect_env", "torch.utils.model_zoo",
)  # fmt: skip
UNSAFE_NAMES: Final = frozenset(
    "Popen __import__ call check_call check_output compile eval exec execfile fork import_module load "
    "load_module loads open popen read_pickle run_code runcode runpy runstring spawn system".split()
)


def is_trusted(module: str, name: str) -> bool:
    """Tell whether a name may stand in a pickle at all: of weights, of a learner or of a model."""
    if (module, name) in WEIGHTS or module == "__main__":  # a notebook's own functions
        return True
    root = module.partition(".")[0]
    if root in ("builtins", "__builtin__"):
        return name in BUILTINS
    if root in sys.stdlib_module_names or root in REMOVED_STDLIB:
        return root in STANDARD
    acts = any(module == acting or module.startswith(f"{acting}.") for acting in ACTING_MODULES)
    return not (acts or root in UNSAFE_PACKAGES or not UNSAFE_NAMES.isdisjoint(name.split(".")))
