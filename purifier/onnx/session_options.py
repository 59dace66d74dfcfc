"""Session options as values that can be pickled."""

from __future__ import annotations

from typing import Any

import onnxruntime

from ..errors import ConfigError
from ..foreign_code import Attempt

ENUMS = {
    "execution_mode": onnxruntime.ExecutionMode,
    "execution_order": onnxruntime.ExecutionOrder,
    "graph_optimization_level": onnxruntime.GraphOptimizationLevel,
}
PROPERTIES = (
    *("enable_cpu_mem_arena", "enable_mem_pattern", "enable_mem_reuse", "enable_profiling", "inter_op_num_threads"),
    *("intra_op_num_threads", "log_severity_level", "log_verbosity_level", "logid", "profile_file_prefix"),
    *("use_deterministic_compute", "use_per_session_threads"),
)
ENTRIES = (
    *("disable_prepacking", "use_env_allocators", "load_model_format", "save_model_format", "set_denormal_as_zero"),
    *("disable_quant_qdq", "disable_double_qdq_remover", "enable_quant_qdq_cleanup", "disable_aot_function_inlining"),
    *("use_device_allocator_for_initializers", "inter_op.allow_spinning", "intra_op.allow_spinning"),
    *("qdqisint8allowed", "x64quantprecision", "intra_op_thread_affinities", "debug_layout_transformation"),
    *("disable_cpu_ep_fallback", "force_spinning_stop", "strict_shape_type_inference", "allow_released_opsets_only"),
    *("dynamic_block_base", "qdq_matmulnbits_accuracy_level", "enable_cast_chain_elimination"),
)
OTHER_ENTRIES = (
    *("optimization.enable_gelu_approximation", "optimization.disable_specified_optimizers"),
    *("optimization.memory_optimizer_config", "optimization.minimal_build_optimizations"),
    "mlas.enable_gemm_fastmath_arm64_bfloat16",
)
"""The names of entries cannot be listed, so those that ONNX Runtime documents are tried."""


def options_as_values(options: onnxruntime.SessionOptions | None) -> dict[str, Any] | None:
    """What was set, for ``options_of``; None stays None.

    Custom operators, overrides of free sizes, and entries that ONNX Runtime does not document cannot be read back, and
    are lost.

    Raises
    ------
    ConfigError
        An option is set that a copy cannot have.
    """
    if options is None:
        return None
    if options.optimized_model_filepath:
        raise ConfigError(
            "sess_options: optimized_model_filepath is set, and a copy of the session would write that file again; "
            "make the session to be copied without it"
        )
    if getattr(options, "has_providers", bool)():
        raise ConfigError(
            "sess_options: add_provider was called, which cannot be read back for a copy of the session; give "
            "providers= instead"
        )
    found = {name: getattr(options, name) for name in PROPERTIES}
    found |= {name: int(getattr(options, name)) for name in ENUMS}
    entries = {}
    for key in (*(f"session.{name}" for name in ENTRIES), *OTHER_ENTRIES):
        with Attempt():  # an entry that was not set raises an error
            entries[key] = options.get_session_config_entry(key)
    return {**found, "entries": entries}


def options_of(values: dict[str, Any] | None) -> onnxruntime.SessionOptions | None:
    """The session options that ``options_as_values`` was given."""
    if values is None:
        return None
    options = onnxruntime.SessionOptions()
    for name in PROPERTIES:
        setattr(options, name, values[name])
    for name, kind in ENUMS.items():
        setattr(options, name, kind(values[name]))
    for key, entry in values["entries"].items():
        options.add_session_config_entry(key, entry)
    return options
