"""Bodies of HTTP that are small or odd and cost much: JSON, forms, tensors."""
