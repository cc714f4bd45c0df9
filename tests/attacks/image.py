"""Images that cost more than they look like."""
