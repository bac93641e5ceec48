"""One function for each thing the product does; each reads as its data path."""
