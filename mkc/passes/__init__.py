"""The compiler's sentence: fuse, place, tile, link, signal, schedule, encode, render. One pass a file."""
