"""The packages of Paddle Serving, which module tells that one is there, and the versions that work together.

Measured with Python 3.8 and 3.9. What the published packages themselves ask for no longer installs, so they
are installed without what they depend on.
"""

from collections.abc import Mapping

PUBLISHED = (
    "paddle-serving-server==0.9.0",
    "paddle-serving-client==0.9.0",
    "paddle-serving-app==0.9.0",
)
BESIDE = (
    "paddlepaddle==2.6.2",
    "protobuf==3.20.3",
    "numpy<1.24",
    "opencv-python==4.6.0.66",
    "grpcio==1.47.5",
    "grpcio-tools==1.47.5",
    "flask<2.1",
    "werkzeug<2.1",
    "jinja2<3.1",
    "itsdangerous<2.1",
    "markupsafe<2.1",
    "shapely<2",
    "pyclipper",
    "sentencepiece",
    "pyyaml",
    "requests",
    "six",
    "pillow",
    "func-timeout",
    "pytest",
    "prometheus-client",
    "faiss-cpu==1.7.4",
)
# Module -> the package that brings it, of what every service needs.
NEEDED: Mapping[str, str] = {
    "paddle_serving_server": "paddle-serving-server",
    "paddle_serving_client": "paddle-serving-client",
    "paddle_serving_app": "paddle-serving-app",
    "paddle": "paddlepaddle",
    "google.protobuf": "protobuf",
    "numpy": "numpy",
    "cv2": "opencv-python",
    "grpc": "grpcio",
    "flask": "flask",
    "yaml": "pyyaml",
    "six": "six",
    "PIL": "pillow",
    "func_timeout": "func-timeout",
}
FAISS = {"faiss": "faiss-cpu"}
PROMETHEUS = {"prometheus_client": "prometheus-client"}
# What the published packages are called where they were built for CUDA.
ALSO: Mapping[str, str] = {
    "paddlepaddle": "paddlepaddle-gpu",
    "paddle-serving-server": "paddle-serving-server-gpu",
    "faiss-cpu": "faiss-gpu",
}
PYTHONS = ("3.9", "3.8")


def pins(python: str) -> str:
    """The two commands that install what works."""
    beside = " ".join(f'"{pin}"' if "<" in pin else pin for pin in BESIDE)
    pip = f"{python} -m pip install"
    return f"`{pip} --no-deps {' '.join(PUBLISHED)}` and `{pip} {beside}`"
