"""Where kernels run. A target builds a page and launches it; these are the only effects of the compiler."""
