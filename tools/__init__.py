"""The programs. A package, so that this folder comes before an installed package called tools."""
