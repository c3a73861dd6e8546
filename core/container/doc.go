// Package container reads and writes the index of a packed tensor: what the
// tensor is, how it was coded, and where each chunk lies in the blob. The
// bytes are specified in FORMAT.md beside this file.
//
// Parse is the one place where an index from outside is trusted or refused:
// after it, every offset, size and count is in range and consistent, so the
// code behind it computes without overflow and allocates within known bounds.
package container
