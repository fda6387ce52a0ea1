"""Students that have no walk of their own: whatever timm can open up, and networks that users bring."""
