"""Images and the HDF5 stores made from them."""
