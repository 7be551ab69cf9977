"""Images: data sets, folders, decoding, augmentation, networks, the classifier and its figures."""
