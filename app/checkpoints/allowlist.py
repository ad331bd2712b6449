"""The names that a pickle may hold. No name is ever looked up here, so none can do harm. But loading the
same file with torch or fastai would run the functions that it names, and the owner ought to be told.

Names that act are refused. Names that networks, their transforms and data blocks need are expected. All
others are carried, and listed in a warning.
"""

import re
import sys
from typing import Final

from app.checkpoints.records import STORAGES

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

# The standard library acts; a learner refers to these modules of it, and to these built-in names.
STANDARD: Final = frozenset(
    "__future__ _codecs _collections_abc _operator _random _thread abc argparse collections copy copy_reg "
    "copyreg dataclasses datetime decimal enum fractions functools inspect itertools math numbers "
    "operator pathlib random re sre_compile statistics string threading time types typing uuid warnings "
    "weakref array base64 binascii bisect calendar contextlib fnmatch genericpath glob hashlib heapq "
    "html json locale ntpath posixpath pprint queue secrets struct textwrap traceback unicodedata zlib "
    "zoneinfo".split()
)
STANDARD_NAMES: Final = {  # of modules that act otherwise
    "_io": {"BytesIO", "StringIO", "TextIOWrapper"},
    "io": {"BytesIO", "StringIO", "TextIOWrapper"},
    "logging": {"Formatter", "Logger", "RootLogger", "getLogger", "debug", "info", "warning", "error"},
    "nt": {"getcwd", "listdir", "stat_result", "fspath"},
    "os": {"PathLike", "fspath", "getcwd", "listdir", "stat_result"},
    "os.path": {"abspath", "basename", "dirname", "exists", "getsize", "isdir", "isfile", "join", "split"},
    "posix": {"getcwd", "listdir", "stat_result", "fspath"},
    "urllib.parse": {"ParseResult", "SplitResult", "quote", "unquote", "urljoin", "urlparse", "urlsplit"},
}
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
    if (module, name) in WEIGHTS | NEEDED or module == "__main__":  # a notebook's own functions
        return True
    root = module.partition(".")[0]
    if root in ("builtins", "__builtin__"):
        return name in BUILTINS
    if name in STANDARD_NAMES.get(module, ()):
        return True
    if root in sys.stdlib_module_names or root in REMOVED_STDLIB:
        return root in STANDARD and UNSAFE_NAMES.isdisjoint(name.split("."))
    acts = any(module == acting or module.startswith(f"{acting}.") for acting in ACTING_MODULES)
    return not (acts or root in UNSAFE_PACKAGES or not UNSAFE_NAMES.isdisjoint(name.split(".")))


# Modules of networks, transforms, data blocks, and of the records that fastai keeps beside them, for their
# classes.
CLASSES: Final = re.compile(
    r"torch(\.(nn|optim|_utils|_tensor|storage|utils\.(data|hooks)|amp|cuda\.amp|distributions)(\..+)?)?"
    r"|torchvision\.(models|transforms|ops|datasets\.(folder|vision))(\..+)?|timm\.(layers|models)(\..+)?"
    r"|fastai2?\.(?!.*(external|all$)).+|fastcore\..+|fastprogress\..+|fasttransform(\..+)?|plum(\..+)?"
    r"|(pytorch_lightning|lightning|torchmetrics|ultralytics\.(nn|utils)|sklearn\.metrics|omegaconf)(\..+)?"
    r"|pandas(\.(core|arrays|_libs)(\..+)?)?|PIL\.(Image|\w+ImagePlugin)|pathlib|datetime|enum|inspect|random|_random"
    r"|typing|string|types|__torch__(\..+)?"
)
# Those whose functions are as harmless.
FUNCTIONS: Final = re.compile(
    r"torch(\.(nn\.functional|nn\.init|_utils|_tensor|_C\._nn))?|torchvision\.(models|transforms|ops)(\..+)?"
    r"|fastai2?\.(basic_data|basic_train|basics|callbacks?|core|data|data_block|imports|layers|learner|losses"
    r"|metrics|optimizer|torch_core|train|vision)(?!.*(external|utils|all$))(\..+)?"
    r"|numpy(\.(core|_core)\.(multiarray|numeric)|\.random\._pickle)?|pandas\.core\..+|pandas\._libs\.internals"
    r"|sklearn\.metrics(\..+)?|collections|builtins|__builtin__|_codecs"
)
# Of those modules: the functions that download, write, import or run, and the ways from a value to code.
ACTS: Final = re.compile(
    r"(.+[._])?(\w*download\w*|untar\w*|\w*url\w*|run|\w*exec\w*|\w*eval|load(?!_image$)\w*|\w*import_\w*|open\w*"
    r"|compile|call|system|save\w*|read_\w*|write\w*|\w*delete\w*|remove|copy_?(file|tree)|launch\w*|from\w*file"
    r"|memmap|map|filter|[gs]etattr|reduce|input|rename|replace|set_\w+|CodeType|FunctionType|MethodType|ModuleType)"
)
NEEDED: Final = frozenset(  # single names of other modules
    (module, name)
    for module, names in {
        "_operator": "or_",
        "cloudpickle.cloudpickle": "_builtin_type _class_setstate _function_setstate _make_cell "
        "_make_empty_cell _make_function _make_skeleton_class",
        "copy_reg": "_reconstructor",
        "copyreg": "_reconstructor __newobj__",
        "dill._dill": "_load_type",
        "fastcore.basics": "fastuple merge noop",
        "fastcore.imports": "noop",
        "functools": "partial",
        "inspect": "_ParameterKind _empty",
        "pandas._libs.arrays": "__pyx_unpickle_NDArrayBacked",
        "re": "_compile",
        "torch.jit._pickle": "build_boollist build_doublelist build_intlist build_tensorlist",
        "torch.nn.backends.thnn": "_get_thnn_function_backend",
    }.items()
    for name in names.split()
)
BY_ARGUMENTS: Final = frozenset(
    {("builtins", "getattr"), ("__builtin__", "getattr"), ("functools", "reduce"), ("__builtin__", "reduce")}
    | {("cloudpickle.cloudpickle", "subimport")}
)


def is_expected(module: str, name: str) -> bool:
    """Tell whether a network, its transforms and data blocks need a name, so that loading it is harmless."""
    known = WEIGHTS | NEEDED | BY_ARGUMENTS
    if (module, name) in known or module == "__main__":
        return True
    if ACTS.fullmatch(name):
        return False
    kind = CLASSES if name[:1].isupper() else FUNCTIONS
    return bool(kind.fullmatch(module))


def is_expected_call(module: str, name: str, arguments: tuple[object, ...]) -> bool:
    """Tell whether a call is as harmless as the name of its function: for some, the arguments decide.

    Those are getattr of a public attribute, a union of types (types.UnionType is pickled as a reduce of or_),
    and the modules that a function of cloudpickle refers to.
    """
    if (module, name) not in BY_ARGUMENTS:
        return True
    match (module, name), arguments:
        case ("builtins" | "__builtin__", "getattr"), (_, str(attribute), *_):
            return not attribute.startswith("_")
        case ("functools" | "__builtin__", "reduce"), (function, *_):
            return str(function) == "_operator.or_"
        case ("cloudpickle.cloudpickle", "subimport"), (str(imported),):
            return bool(CLASSES.fullmatch(imported)) or imported.partition(".")[0] in STANDARD | {
                "io",
                "numpy",
            }
    return False
