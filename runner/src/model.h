// The one place that knows a runtime: model_openvino.cpp and model_onnxruntime.cpp are two ways to write it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle.h"

namespace edge {

class Model {
 public:
  virtual ~Model() = default;
  // Input [3, height, width], normalised; gives logits, one a class.
  virtual const std::vector<float>& infer(const std::vector<float>& input) = 0;
};

extern const char* const kRuntime;  // as manifests name it
std::string runtime_version();

// Opens the model from the bytes that were hashed. Throws whatever the runtime throws, or Error.
std::unique_ptr<Model> open_model(const Bundle& bundle);

}  // namespace edge
