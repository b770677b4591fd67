"""Domain similarity: how far one domain's classes are from another's, and which of them to pre-train on.

After Cui, Song, Sun, Howard and Belongie, "Large Scale Fine-Grained Categorization and Domain-Specific Transfer
Learning" (DSTL), CVPR 2018. A domain is described by the mean features of its classes, weighted by their numbers of
images; the distance between two domains is the Earth Mover's Distance between these descriptions.
"""
