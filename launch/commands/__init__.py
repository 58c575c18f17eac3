"""The commands of `dist-resnet` that do something, a file each: `options` adds what it reads to a
parser, a function of the command's name takes them and returns the exit code."""
