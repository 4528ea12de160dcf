"""Training mechanics shared by every trainer."""
