"""Names for the arrays that pass through the package."""

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
"""Any shape and dtype."""
Floats: TypeAlias = npt.NDArray[np.float32]
"""float32 of any shape: boxes (M, 4), scores (M,) or (C, M)."""
Image8: TypeAlias = npt.NDArray[np.uint8]
"""An image: H×W×3 uint8, RGB."""
Tensor: TypeAlias = npt.NDArray[np.float32]
"""A model's input for one image (3, H, W) or a batch (N, 3, H, W), float32."""
Vectors: TypeAlias = npt.NDArray[np.float32]
"""Embeddings: (N, dimension) float32."""
Indices: TypeAlias = npt.NDArray[np.int64]
"""Places in another array: (K,) int64."""
Ids: TypeAlias = npt.NDArray[np.int64]
"""Ids of an index's entries: (N,) int64."""
