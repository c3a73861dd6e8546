package main

/*
#include "tpde.h"
*/
import "C"

import (
	"github.com/tpde-project/tpde/core/device/dl"
	"github.com/tpde-project/tpde/core/device/info"
)

//export goDeviceSearch
func goDeviceSearch(folders **C.char, numFolders C.uint32_t) C.int32_t {
	return call(func() error {
		list, err := paths("folders", folders, numFolders)
		if err != nil {
			return err
		}
		dl.SetSearch(list)
		return nil
	})
}

//export goDeviceInfo
func goDeviceInfo(dst *C.tpde_handle) C.int32_t {
	return call(func() error {
		if err := present("text", dst); err != nil {
			return err
		}
		return storeJSON(dst, info.Collect())
	})
}
