"""The page of `cbam demo`: drop a picture, see where networks look in it; needs the extra `demo`."""
