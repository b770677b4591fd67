"""Data sets of frame pairs with optical flow: FlyingChairs, Scene Flow, Sintel, KITTI, HD1K, Middlebury."""
