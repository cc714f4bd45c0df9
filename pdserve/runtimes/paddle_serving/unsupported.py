"""Settings that only the native runtime supports, rejected by name: dropping one silently would mislead."""

import sys
from collections.abc import Iterator

from pdserve.errors import SettingsError, UsageError
from pdserve.runtimes.paddle_serving.interpreter import SCRIPTS
from pdserve.settings import ModelSettings, ServerSettings, ServiceSettings

_SUPPORTED = {"name", "offline", "http_port", "rpc_port", "grace_s", "log_file", "log_format"}
_NATIVE = (frozenset(ServerSettings.model_fields) - _SUPPORTED) | {
    "max_queue_size",
    "hang_s",
    "top_k",  # the old answer has the best label only
    "gallery_writes",
}
# Those that protect the server are rejected also in a file that both runtimes read.
_PROTECTING = frozenset({"host", "api_key", "api_key_file", "tls_cert", "tls_key", "gallery_writes"})
_EVERYWHERE = ("0.0.0.0", "::")
_ADVICE = "leave it out, or use --runtime native"


def check(settings: ServiceSettings) -> list[str]:
    """Notes on settings without effect. Raises UsageError and SettingsError for unsupported ones."""
    if sys.platform != "linux":
        raise UsageError("Paddle Serving runs on Linux only; use --runtime native.")
    if not (SCRIPTS / f"{settings.kind}_web_service.py").is_file():
        raise UsageError(f"Paddle Serving has no service for {settings.kind}; use --runtime native.")
    given = settings.sources
    everywhere = settings.server.host in _EVERYWHERE  # which is where Paddle Serving listens
    refused = _NATIVE - ({"host"} if everywhere else set())
    for name, where in given.given.items():
        if name in refused:
            raise UsageError(f"Paddle Serving has no {where}; {_ADVICE}.")
    for name in sorted(refused & given.block & _PROTECTING):
        raise SettingsError(f"Paddle Serving has no pdserve.{name}, which the configuration has; {_ADVICE}.")
    _check_ports(settings.server)
    for model in settings.models.values():
        _check_model(model)
    return list(_notes(settings, refused))


def _check_ports(server: ServerSettings) -> None:
    for name, port in (("http_port", server.http_port), ("rpc_port", server.rpc_port)):
        if port and port < 1024:
            raise SettingsError(f"{name} is {port}; Paddle Serving takes ports from 1024 on.")


def _check_model(model: ModelSettings) -> None:
    if model.engine not in ("auto", "paddle"):
        raise UsageError(f"Paddle Serving has no engine {model.engine}, only paddle; {_ADVICE}.")
    gpu, precision = model.devices != ("cpu",), model.precision
    # It would run the others as fp32, and say so nowhere or only in its log.
    if precision not in ("fp32", "bf16") and not (precision == "fp16" and model.tensorrt):
        raise UsageError(f"Paddle Serving has no precision {precision} on this device; {_ADVICE}.")
    if precision == "bf16" and gpu:
        raise UsageError("Paddle Serving has the precision bf16 on a CPU only; use fp32, or --cpu.")


def _notes(settings: ServiceSettings, refused: frozenset[str]) -> Iterator[str]:
    for name in sorted(refused & settings.sources.block):
        yield f"pdserve.{name} of the configuration has no effect on Paddle Serving"
    if "host" in refused:
        yield "Paddle Serving listens on every address of this machine, not on 127.0.0.1 alone"
