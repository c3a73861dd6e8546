//go:build race

package checkpoint

// raceDetector is set where everything is ten times slower: the attacks then
// flip one bit of each byte instead of all.
const raceDetector = true
