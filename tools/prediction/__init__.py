"""Parts of tools/predict.py, which tools/adapt.py shares."""
