"""Names for the arrays that pass through the package."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]  # any shape and dtype
Floats: TypeAlias = npt.NDArray[np.float32]  # any shape: boxes (M, 4), scores (M,) or (C, M)
Image8: TypeAlias = npt.NDArray[np.uint8]  # an image, H×W×3, RGB
Tensor: TypeAlias = npt.NDArray[np.float32]  # a model's input, (3, H, W) or a batch, (N, 3, H, W)
Vectors: TypeAlias = npt.NDArray[np.float32]  # embeddings, (N, dimension)
Indices: TypeAlias = npt.NDArray[np.int64]  # places in another array, (K,)
Ids: TypeAlias = npt.NDArray[np.int64]  # ids of an index's entries, (N,)
