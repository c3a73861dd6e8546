package main

import "C"

// goReady returns once the library is initialised, as every exported call does.
//
//export goReady
func goReady() {}
