"""Takes purchases and sees them through, whatever happens on the way."""
