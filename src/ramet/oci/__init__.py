"""Images of the Open Container Initiative: names, documents, and the registries that have them."""
