//go:build !race

package checkpoint

// See race_on_test.go.
const raceDetector = false
