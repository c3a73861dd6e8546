// Package all registers every codec of this build; import it for its effect.
package all

import (
	_ "github.com/tpde-project/tpde/core/codec/elias"
	_ "github.com/tpde-project/tpde/core/codec/prefix"
	_ "github.com/tpde-project/tpde/core/codec/raw"
	_ "github.com/tpde-project/tpde/core/codec/rice"
	_ "github.com/tpde-project/tpde/core/codec/zstd"
)
