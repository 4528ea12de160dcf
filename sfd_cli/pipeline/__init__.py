"""A trained model as one object: sampling, encoding, loading and saving."""
