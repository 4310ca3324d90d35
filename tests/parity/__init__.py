"""The same random weights through this extension and through an independent implementation."""
