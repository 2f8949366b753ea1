"""A small spatial LLaVA, trained from nothing on drawn scenes."""
