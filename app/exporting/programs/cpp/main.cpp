// The classifier on the command line.
//
//   classify              replay the proof: are the answers right here?
//   classify PHOTO...     print the likeliest class of each photo
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "classifier.hpp"

namespace fs = std::filesystem;

namespace {

constexpr double tolerance = 0.01;

std::vector<std::string> split(const std::string& line) {
    std::vector<std::string> cells;
    std::istringstream stream(line);
    for (std::string cell; std::getline(stream, cell, '\t');) cells.push_back(cell);
    return cells;
}

// Compares the answers to the photos in proof/ with the right ones.
bool prove(Classifier& classifier, const fs::path& folder) {
    std::ifstream table(folder / "answers.tsv");
    std::string line;
    std::getline(table, line);
    auto classes = split(line);
    classes.erase(classes.begin());  // the title of the first column
    int photos = 0;
    int flips = 0;
    double worst = 0;
    while (std::getline(table, line)) {
        const auto cells = split(line);
        const Answer found = classifier(readPicture(folder / cells[0], classifier.turnsUpright()));
        Answer expected{classes, {}};
        for (std::size_t i = 0; i < classes.size(); ++i) {
            expected.probabilities.push_back(std::stof(cells.at(i + 1)));
            const double difference = found.probabilities.at(i) - expected.probabilities[i];
            worst = std::isnan(difference) ? 1 : std::max(worst, std::abs(difference));
        }
        flips += static_cast<int>(found.classes != classes || found.best() != expected.best());
        ++photos;
    }
    const bool holds = photos > 0 && flips == 0 && worst <= tolerance;
    std::cout << (holds ? "The proof holds: " : "THE PROOF FAILS: ") << photos << " photos, "
              << flips << " of another class, largest difference " << std::fixed << worst << '\n';
    return holds;
}

// The folder of the export: the nearest one above the program that has the model.
fs::path exported(const fs::path& program) {
    fs::path folder = fs::absolute(program).parent_path();
    while (!fs::exists(folder / "model.onnx")) {
        if (folder == folder.root_path())
            throw std::runtime_error("there is no model.onnx above the program");
        folder = folder.parent_path();
    }
    return folder;
}

int classify(Classifier& classifier, const std::vector<std::string>& photos) {
    int status = EXIT_SUCCESS;
    for (const auto& photo : photos) {
        try {
            const Answer answer = classifier(readPicture(photo, classifier.turnsUpright()));
            const std::size_t best = answer.best();
            std::cout << photo << ": " << answer.classes[best] << " (" << std::fixed
                      << std::setprecision(1) << 100 * answer.probabilities[best] << "%)\n";
        } catch (const std::exception& error) {
            std::cerr << photo << ": " << error.what() << '\n';
            status = EXIT_FAILURE;
        }
    }
    return status;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        const fs::path folder = exported(arguments[0]);
        Classifier classifier(folder / "model.onnx");
        if (count > 1) return classify(classifier, {arguments + 1, arguments + count});
        return prove(classifier, folder / "proof") ? EXIT_SUCCESS : EXIT_FAILURE;
    } catch (const std::exception& error) {
        std::cerr << "error: " << error.what() << '\n';
        return EXIT_FAILURE;
    }
}
