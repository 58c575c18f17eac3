"""The commands of `dist-resnet`, a file each: options in, exit code out."""
