"""Write ``published/``: what Paddle Serving's own converter makes of the models beside this file.

Python 3.9 with ``paddle-serving-client`` 0.9.0 (no dependencies), ``paddlepaddle`` 2.6.2 and
``protobuf`` 3.20. That converter imports ``paddle.fluid``, which 2.6 calls ``paddle.base``; it uses of it
what is named below. ``python tests/data/programs/published.py``
"""

import shutil
import sys
import tempfile
import types
from pathlib import Path

HERE = Path(__file__).parent


def import_converter():
    """Import it with ``paddle.fluid`` put together from where its parts are now."""
    import paddle
    from paddle import base, static

    fluid = types.ModuleType("paddle.fluid")
    fluid.__dict__.update(vars(base))
    fluid.layers = types.ModuleType("layers")
    fluid.io = types.ModuleType("io")
    for name in ("prepend_feed_ops", "append_fetch_ops", "load_inference_model"):
        setattr(fluid.io, name, getattr(static.io, name))
    # The old signature calls the folder otherwise.
    load = static.io.load_inference_model
    fluid.io.load_inference_model = lambda dirname, executor, **names: load(dirname, executor, **names)
    sys.modules["paddle.fluid"] = paddle.fluid = fluid
    for name in ("io", "layers", "core", "framework", "compiler", "executor", "log_helper"):
        sys.modules[f"paddle.fluid.{name}"] = getattr(fluid, name)
    for name in ("CipherUtils", "CipherFactory", "Cipher"):  # encryption, not used here
        if not hasattr(base.core, name):
            setattr(base.core, name, None)
    paddle.static.save_vars = static.io.save_vars
    # Without the package's own __init__, which loads the C++ client.
    package = types.ModuleType("paddle_serving_client")
    package.__path__ = [str(Path(paddle.__file__).parents[1] / "paddle_serving_client")]
    sys.modules["paddle_serving_client"] = package
    from paddle_serving_client.io import inference_model_to_serving

    return inference_model_to_serving


def main():
    convert = import_converter()
    for model, params in (("two_heads/pdmodel", "inference.pdiparams"), ("odd", None)):
        with tempfile.TemporaryDirectory() as temporary:
            server, client = f"{temporary}/server", f"{temporary}/client"
            convert(str(HERE / model), server, client, "inference.pdmodel", params)
            target = HERE / "published" / model.split("/")[0]
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            for folder in (server, client):
                for file in Path(folder).glob("*.prototxt"):
                    shutil.copyfile(file, target / file.name)


if __name__ == "__main__":
    main()
