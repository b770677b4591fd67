"""Domain similarity: measure the distance between two domains, and select source classes to pre-train on.

After Cui, Song, Sun, Howard and Belongie, "Large Scale Fine-Grained Categorization and Domain-Specific Transfer
Learning" (DSTL), CVPR 2018. A domain is represented by the mean features of its classes, weighted by the number
of images per class; the distance between two domains is the Earth Mover's Distance between their representations.
"""
