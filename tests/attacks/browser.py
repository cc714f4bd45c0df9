"""What a page of a stranger can make a browser send."""
