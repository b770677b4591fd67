"""Flow in files: a reader of every format, and a file for each format: .flo, .pfm, and KITTI's 16-bit PNG."""
