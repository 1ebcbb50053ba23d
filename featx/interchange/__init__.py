"""Files through which features go to other programs and come from them."""
