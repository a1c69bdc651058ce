// Writes the network's inputs for some files to standard output, float32 as they lie in memory: tests compare them with run.py's.
#include <cstdio>
#include <cstdlib>
#include <new>

#include "error.h"
#include "preprocess.h"

int main(int count, char** words) {
  if (count < 5) {
    std::fputs("usage: print-input gray|rgb HEIGHT WIDTH FILE ...\n", stderr);
    return 2;
  }
  edge::Preprocess preprocess;
  preprocess.gray = std::string(words[1]) == "gray";
  preprocess.size = {std::strtoul(words[2], nullptr, 10), std::strtoul(words[3], nullptr, 10)};
  preprocess.mean = {0.5f, 0.4f, 0.3f};
  preprocess.std = {0.5f, 0.3f, 0.2f};
  int status = 0;
  for (int i = 4; i < count; ++i) {
    try {
      const std::vector<float> input = edge::read_input(words[i], preprocess, preprocess.size);
      std::fwrite(input.data(), sizeof(float), input.size(), stdout);
    } catch (const edge::Error& reason) {
      std::fprintf(stderr, "error: %s\n", reason.what());
      status = 2;
    } catch (const std::bad_alloc&) {
      std::fprintf(stderr, "error: %s needs more memory than there is\n", words[i]);
      status = 2;
    }
  }
  return status;
}
