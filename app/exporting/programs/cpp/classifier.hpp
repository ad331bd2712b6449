// The classifier: `model.onnx` takes the pixels of a photo and does everything else itself.
#pragma once

#include <onnxruntime_cxx_api.h>

#include <filesystem>
#include <string>
#include <vector>

#include "picture.hpp"

struct Answer {
    std::vector<std::string> classes;
    std::vector<float> probabilities;  // of each class, in the same order

    [[nodiscard]] std::size_t best() const;
};

class Classifier {
public:
    explicit Classifier(const std::filesystem::path& model);

    // Several threads may call it at once.
    Answer operator()(const Picture& picture);

    // Whether photos are turned upright by their EXIF orientation, as the server does.
    [[nodiscard]] bool turnsUpright();

private:
    Ort::Env env_{ORT_LOGGING_LEVEL_WARNING, "classifier"};
    Ort::Session session_;
};
